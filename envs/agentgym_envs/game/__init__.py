"""Games on text grids: Sokoban, keys and doors, Minesweeper without guessing."""
