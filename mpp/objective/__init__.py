"""What the encoder is asked to do: masked patch prediction, or supervised classification beside it."""
