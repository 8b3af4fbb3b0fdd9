"""Makes the edit: SAE, activations, choice of features, the dynamic hook, the baked UNet."""
