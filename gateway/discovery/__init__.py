"""Where instances are found: a watched file, DNS, Kubernetes. Each yields whole lists and knows no user."""
