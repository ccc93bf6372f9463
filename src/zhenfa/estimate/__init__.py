"""Laws composed into steps: what a plan takes, holds, costs and risks."""
