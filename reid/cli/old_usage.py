"""Commands and options of version 0.1.0 that have new names.

They are accepted for one version more, and a hint on stderr names the new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from reid.errors import ConfigError

COMMANDS = {"compare": "sweep"}
OPTIONS = {
    "init": {"--domain": "--category"},
    "search": {"--domain": "--category"},
    "calibrate": {"--apart": "--min-gap"},
    "evaluate": {"--strips": "--query-examples"},
}
DIFF = ("evaluate", "--compare", "diff")  # an option of one command that became a command of its own


def current_usage(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace the old names in the words of a command line.

    Args:
        words: The words after "reid".

    Returns:
        The words with the new names, and one hint for each name that was replaced.

    Raises:
        ConfigError: An option is given under its old and its new name.

    Example:
        >>> current_usage(["init", "crops", "--domain", "vehicle"])
        (['init', 'crops', '--category', 'vehicle'], ['reid init --domain is now reid init --category'])
    """
    command = words[0] if words else ""
    if command in COMMANDS:
        return [COMMANDS[command], *words[1:]], [f"reid {command} is now reid {COMMANDS[command]}"]
    if command == DIFF[0] and DIFF[1] in words:
        rest = [word for word in words[1:] if word != DIFF[1]]
        return [DIFF[2], *rest], [f"reid {DIFF[0]} {DIFF[1]} is now reid {DIFF[2]}"]
    current, hints = list(words), []
    for old, new in OPTIONS.get(command, {}).items():
        positions = [position for position, word in enumerate(words) if word.partition("=")[0] == old]
        if positions and any(word.partition("=")[0] == new for word in words):
            raise ConfigError(f"{old} is the old name of {new}, which is given too; keep one")
        for position in positions:
            current[position] = new + words[position].removeprefix(old)
        if positions:
            hints.append(f"reid {command} {old} is now reid {command} {new}")
    return current, hints
