"""How clients of object stores compare: bytes and requests a second, and what they do when a server or a fork fails."""
