"""What happened to requests: ledger, journal, metrics, traces. Nothing here runs where nothing is configured."""
