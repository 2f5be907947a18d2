"""The squeeze at the cut: autoencoder, TCL, quantization levels."""
