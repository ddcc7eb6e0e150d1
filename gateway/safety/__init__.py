"""Who may ask, how much, and what: keys, limits and admission. Nothing here runs where nothing is configured."""
