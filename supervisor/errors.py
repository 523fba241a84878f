"""What goes wrong in starting a stack."""


class BootError(Exception):
    """The stack did not come up; the text says why."""
