-- put back: ends a claim without counting an attempt; what it has not answered is queued again, at the front.
local id, token = ARGV[3], ARGV[4]
local record = key('record:' .. id)
local held = redis.call('HGET', record, 'claim:' .. token)
redis.call('ZREM', key('leases'), token)
if not held then return 0 end
redis.call('HDEL', record, 'claim:' .. token)
local back = split(held)
if redis.call('HGET', record, 'keep') ~= '1' then back = unanswered(id, back) end
if #back == 0 then return 0 end
redis.call('HSET', record, 'open', redis.call('HGET', record, 'open') .. ' ' .. join(back))
queue_up(id, again_lane(redis.call('HGET', record, 'lane')), clock())
return #back
