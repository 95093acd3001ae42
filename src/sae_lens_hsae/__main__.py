"""``python -m sae_lens_hsae``: the command ``hsae``, as a module for PyTorch's launcher."""

from sae_lens_hsae.cli import main

if __name__ == "__main__":
    main()
