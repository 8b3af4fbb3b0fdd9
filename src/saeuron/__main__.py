"""`python -m saeuron …`, also under `accelerate launch -m`."""

from .export.cli import main

if __name__ == "__main__":
    main()
