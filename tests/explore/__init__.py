"""The core, explored: every legal event in every reachable state, breadth first."""
