"""The command line: a verb is a module here."""
