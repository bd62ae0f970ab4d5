"""TASKS: every task by name. `quiet list` prints their one-line descriptions."""

from quietreasoning.data.tasks.base import GeneratedTask, Task
from quietreasoning.data.tasks.pointer import Pointer

TASKS: dict[str, type[Task]] = {task.name: task for task in (Pointer,)}

__all__ = ["TASKS", "GeneratedTask", "Task"]
