"""Study files that ship with splitsearch."""
