"""What both worlds share, standard library only.

reconcile:  the one controller contract
queue:      the work queue, without a clock
memory:     what a controller process remembers and a restart forgets
backends:   what a controller is made of
lease:      leader election, without a clock
webhook:    the contract of an admission webhook
live:       the threads that drive a controller in real time; the only place here that reads the wall clock
"""
