"""What each command does once its recipe is read: the other rooms put together."""
