"""What a schedule costs: operations, GPU hours, money, energy and memory, before it is run."""
