-- clear: takes the messages off a lane's list that lead to no record, in parts; the others move to its end, so that all of
-- them keep their order once the whole list was gone through.
-- Returns how many of them were plain calls that no worker had taken, and how many messages were looked at.
local MESSAGES, BYTES = 250, 2000000

local lane, count = ARGV[3], math.min(tonumber(ARGV[4]), MESSAGES)
write_even_when_full()

-- Celery's id of a message, '' if it can't be read; and whether it is a pointer of ours.
local function read(message)
  local _, id, task = pcall(function()
    local headers = cjson.decode(message).headers
    return headers.id, headers.task
  end)
  return type(id) == 'string' and id or '', task == 'promptmill.run'
end

local calls, looked, bytes = 0, 0, 0
while looked < count and bytes < BYTES do
  local message = redis.call('RPOP', list_of(lane))
  if not message then
    looked = tonumber(ARGV[4])
    break
  end
  looked, bytes = looked + 1, bytes + #message
  local id, is_pointer = read(message)
  local open = redis.call('HGET', key('record:' .. id), 'open')
  if open and open ~= '' then
    redis.call('LPUSH', list_of(lane), message)
  elseif not open and not is_pointer and redis.call('EXISTS', key('answers:' .. id)) == 0 then
    calls = calls + 1
  end
end
prune_lane(lane)
return {calls, looked}
