"""`python -m vjepa_hub COMMAND`, for torchrun and accelerate launch."""

from .cli import main

if __name__ == "__main__":
    main()
