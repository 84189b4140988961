"""The shared Vision Transformer: built, opened at one seam, exported."""
