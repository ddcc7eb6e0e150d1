"""How often tests look at what tells nobody when it changes."""

PAUSE_SECONDS = 0.02  # between looks at other processes: cores are left to those that start
