"""The operations view: one page, and the figures it shows."""
