"""The fork server's process: a fresh interpreter that loads one generation and forks its workers."""
