"""TASKS: every task by name. `quiet list` prints their one-line descriptions."""

from quietreasoning.data.tasks.arithmetic import Arithmetic
from quietreasoning.data.tasks.base import GeneratedTask, Task
from quietreasoning.data.tasks.multiplication import Multiplication
from quietreasoning.data.tasks.permutation import PermutationProduct
from quietreasoning.data.tasks.pointer import Pointer
from quietreasoning.data.tasks.reachability import Reachability

_ALL = (Pointer, Arithmetic, Reachability, Multiplication, PermutationProduct)
TASKS: dict[str, type[Task]] = {task.name: task for task in _ALL}

__all__ = ["TASKS", "GeneratedTask", "Task"]
