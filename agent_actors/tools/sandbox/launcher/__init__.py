"""A small program between us and a command: it bounds it, confines it, and ends all of it.

It is run as `python -I -S -c START <folder above>` by `running.launch`, outside of the service's
process, since Python between fork and exec can hang in a process with threads. It imports nothing
but the standard library, and little of that: it is started for each command.

    main      the keeper: starts the command, waits, leaves no descendant alive
    child     what the command's process does before it becomes the command
    user      another user, without capabilities
    landlock  which files
    seccomp   which system calls
    system    system calls that Python has no function for
"""
