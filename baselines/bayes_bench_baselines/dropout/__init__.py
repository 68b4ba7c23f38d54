"""Random masks on the inputs of layers."""
