"""Checks of prompts and answers: patterns, word lists, or a hook. Nothing here runs where nothing is configured."""
