"""What the processes say to each other: messages, the channels they travel on, a worker's reports."""
