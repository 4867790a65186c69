"""Experiments whose result is a table and not a flow."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Study(ABC):
    """An experiment of many fits, such as one that varies the dimension; a recipe names it in its section ``study``."""

    @abstractmethod
    def run(self, directory: Path | None = None, *, resume: bool = False, progress: bool = True) -> Any:
        """Do what is not done yet.

        Args:
            directory: Folder for the result, which is written after every part of the work.
            resume: Go on with what is there.
            progress: Show it.

        Returns:
            The result: ``str()`` gives a table, ``to_dict()`` the same for JSON, and its attribute ``complete`` says whether all is done.
        """

    @abstractmethod
    def read(self, directory: Path) -> Any:
        """The result in a folder.

        Raises:
            FileNotFoundError: If there is none.
        """
