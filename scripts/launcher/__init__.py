"""How the system is installed, started, watched and stopped on one machine."""
