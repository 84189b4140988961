"""Where images come from, in which order, and how they become pixels."""
