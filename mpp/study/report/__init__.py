"""The page of a study: tables and figures, each a query of its results."""
