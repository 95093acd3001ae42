"""``python -m sae_lens_hsae``: the command ``hsae``, as a module for PyTorch's launcher."""

from sae_lens_hsae.cli.main import main

if __name__ == "__main__":
    main()
