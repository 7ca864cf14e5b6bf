"""What several test modules share: generators of data, slow reference versions, small networks."""
