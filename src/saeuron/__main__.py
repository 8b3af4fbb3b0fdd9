"""`python -m saeuron …`, also under `torchrun -m` and `accelerate launch -m`."""

from .export.start import main

if __name__ == "__main__":
    main()
