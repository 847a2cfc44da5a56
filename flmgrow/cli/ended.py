"""A command whose work other processes do ends as they did, and they have told why."""


class EndedError(Exception):
    """A process that this command started has ended with ``code``; nothing is left to be told."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
