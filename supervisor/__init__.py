"""The keeper and the command line's verbs."""
