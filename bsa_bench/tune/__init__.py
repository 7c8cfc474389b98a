"""Re-tune the table of tiles on a GPU: list candidates, dismiss by machine code, measure, choose, write."""
