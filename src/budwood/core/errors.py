"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: its message is one line that says what, where and how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
