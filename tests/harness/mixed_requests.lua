-- What wrk sends through a proxy: GETs, and POSTs with bodies of several sizes, in turn. Now and then a connection rests
-- for up to 200 ms, so that some of the proxy's upstream connections fall idle. The last line it prints is for the test.

local turn = 0
local bodies = {}

function init(arguments)
    for size = 1, 8 do
        bodies[size] = string.rep("0123456789abcdef", size * size * 16)
    end
end

function request()
    turn = turn + 1
    if turn % 2 == 0 then
        return wrk.format("GET", "/fixed")
    end
    return wrk.format("POST", "/echo", nil, bodies[turn % 8 + 1])
end

function delay()
    return math.random() < 0.06 and math.random(0, 200) or 0
end

function done(summary, latency, requests)
    local errors = summary.errors
    print(string.format(
        '{"requests": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}',
        summary.requests, errors.connect, errors.read, errors.write, errors.status, errors.timeout
    ))
end
