"""``python -m experiments``, in a checkout."""

from experiments.command import main

if __name__ == "__main__":
    main()
