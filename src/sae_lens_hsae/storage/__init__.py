"""Files that appear whole or not at all, that no cast can change, and that are checked before they are trusted."""
