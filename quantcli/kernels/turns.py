"""Threads take turns at loops of many short numpy calls.

Each call hands the interpreter lock over: two threads in such loops are slower than one. Threads
in long matrix products hold no lock, so one of them may loop meanwhile.
"""

import threading

TURN = threading.Lock()
