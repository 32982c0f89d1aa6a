"""Updates the rows that a batch touched, and their moments."""
