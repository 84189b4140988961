"""What frozen features are worth: linear few-shot, nearest neighbours, linear probe, by depth; and paired intervals."""
