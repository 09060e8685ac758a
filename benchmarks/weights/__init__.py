"""Does a limit on lambda_t at weak positions move the frontier of reward against KL?"""
