"""What is drafted and how much of it is verified: one request by itself, many by Algorithm 1 and its heirs."""
