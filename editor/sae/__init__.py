"""The sparse autoencoder, readers of other people's files, training."""
