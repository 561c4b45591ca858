"""Pictures and words, and the tensors and spans that they become."""
