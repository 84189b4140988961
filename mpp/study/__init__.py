"""A study: arms, seeds and variants as units of work; from their outcomes to a report."""
