"""The fault drill: break one part at a time in the middle of a training run, and look."""
